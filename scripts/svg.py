"""The frame of a drawing that a script writes."""

from collections.abc import Iterable


def document(width: int, height: int, title: str, style: str, body: Iterable[str]) -> str:
    """A picture with a title for who cannot see it, on paper, and the head of its arrows."""
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="title">',
        f'  <title id="title">{title}</title>',
        f"  <style>{style}  </style>",
        "  <defs>",
        '    <marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#6b7f99"/></marker>',
        "  </defs>",
        f'  <rect class="paper" width="{width}" height="{height}"/>',
    ]
    return "\n".join([*head, *body, "</svg>", ""])
