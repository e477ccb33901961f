"""`gradest.explain`: what is known of each draw of a loss, as a table."""
