"""The training step of `vae` with PyTorch, alone and with the libraries on top of it.

Imported only where PyTorch is.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..speed import SAMPLES
from . import _peers
from .vae import (
    CATEGORIES,
    LEARNING_RATE,
    SURROGATE_HIDDEN,
    TEMPERATURE,
    VARIABLES,
    Params,
)

torch = _peers.load("PyTorch")
F = torch.nn.functional

#: A step that returns its loss.
Step = Callable[[], Any]
Make = Callable[[Params, np.ndarray], Step]


def network(layers: Any) -> Any:
    """Of the same parameters as in JAX."""
    linear = []
    for weights, bias in layers:
        module = torch.nn.Linear(*weights.shape)
        with torch.no_grad():
            module.weight.copy_(_peers.to_torch(weights).T)
            module.bias.copy_(_peers.to_torch(bias))
        linear.append(module)
    return torch.nn.Sequential(linear[0], torch.nn.ReLU(), linear[1])


def adam(*parameters: Any) -> Any:
    return torch.optim.Adam(parameters, LEARNING_RATE, fused=True)


def divergence(log_q: Any) -> Any:
    return (log_q.exp() * (log_q + math.log(CATEGORIES))).sum((-2, -1))


def distortion(decoder: Any, z: Any, x: Any) -> Any:
    l = decoder(z.reshape(*z.shape[:-2], VARIABLES * CATEGORIES))
    return (F.softplus(l) - x * l).sum(-1)


def logits_of(encoder: Any, x: Any) -> Any:
    l = encoder(x)
    return l.reshape(*l.shape[:-1], VARIABLES, CATEGORIES)


# ---- By hand -------------------------------------------------------------------------------


def trained(loss: Callable[[Any, Any, Any], Any]) -> Make:
    """The step of a loss, or of a surrogate and the loss, of (encoder, decoder, images)."""

    def make(params: Params, images: np.ndarray) -> Step:
        encoder, decoder = network(params["encoder"]), network(params["decoder"])
        optimizer = adam(*encoder.parameters(), *decoder.parameters())
        x = _peers.to_torch(images)

        def step() -> Any:
            optimizer.zero_grad()
            surrogate, value = loss(encoder, decoder, x)
            surrogate.backward()
            optimizer.step()
            return value.detach()

        return step

    return make


def gumbel_softmax(encoder: Any, decoder: Any, x: Any) -> Any:
    logits = logits_of(encoder, x)
    z = F.gumbel_softmax(logits, tau=TEMPERATURE)
    loss = (divergence(F.log_softmax(logits, -1)) + distortion(decoder, z, x)).mean()
    return loss, loss


def leave_one_out(encoder: Any, decoder: Any, x: Any) -> Any:
    log_q = F.log_softmax(logits_of(encoder, x), -1)
    zs = torch.distributions.OneHotCategorical(logits=log_q, validate_args=False).sample((SAMPLES,))
    log_ps = (zs * log_q).sum((-2, -1))
    cs = distortion(decoder, zs, x)
    signal = (cs - (cs.sum(0) - cs) / (SAMPLES - 1)).detach()
    kl = divergence(log_q).mean()
    return kl + (cs + signal * log_ps).mean(), kl + cs.mean()


def controlled(estimator: str) -> Make:
    """REBAR or RELAX with coupled noise, as in JAX."""

    def make(params: Params, images: np.ndarray) -> Step:
        encoder, decoder = network(params["encoder"]), network(params["decoder"])
        control = [
            torch.nn.Parameter(_peers.to_torch(params["control"][name]))
            for name in ("temperature", "eta")
        ]
        temperature, eta = control
        surrogate = None
        if estimator == "relax":
            surrogate = network(params["control"]["surrogate"])
            control = [*control, *surrogate.parameters()]
        optimizer = adam(*encoder.parameters(), *decoder.parameters(), *control)
        x = _peers.to_torch(images)

        def control_variate(z: Any) -> Any:
            relaxed = torch.softmax(z / temperature, -1)
            if surrogate is None:
                return distortion(decoder, relaxed, x)
            return surrogate(relaxed.reshape(len(x), -1))[:, 0]

        def step() -> Any:
            optimizer.zero_grad()
            logits = logits_of(encoder, x)
            kl = divergence(F.log_softmax(logits, -1)).mean()
            with torch.no_grad():
                p = torch.softmax(logits, -1)
                z = logits - torch.empty_like(logits).exponential_().log()
                b = F.one_hot(z.argmax(-1), CATEGORIES).to(z.dtype)
                w = (z - z.amax(-1, keepdim=True)).exp()
            f = distortion(decoder, b, x)
            z.requires_grad_()
            c = control_variate(z)
            (d_z,) = torch.autograd.grad(c.sum(), z, create_graph=True)
            d_given_b = p * (w * d_z).sum(-1, keepdim=True) + (1 - w) * d_z
            signal = (f.detach() - eta * c)[:, None, None]
            g = (signal * (b - p) + eta * (d_z - d_given_b)) / len(x)
            squared = len(x) * (g * g).sum()
            for parameter, d in zip(control, torch.autograd.grad(squared, control), strict=True):
                parameter.grad = d
            loss = kl + f.mean()
            torch.autograd.backward([loss, logits], [None, g.detach()])
            optimizer.step()
            return loss.detach()

        return step

    return make


# ---- With Pyro and Storchastic -------------------------------------------------------------


def with_pyro(pyro: Any) -> Make:
    """Its own inference: the densities of the relaxed draws stand for the divergence."""

    def make(params: Params, images: np.ndarray) -> Step:
        pyro.clear_param_store()
        encoder, decoder = network(params["encoder"]), network(params["decoder"])
        x, temperature = _peers.to_torch(images), _peers.to_torch(np.float32(TEMPERATURE))
        prior = _peers.to_torch(np.zeros((VARIABLES, CATEGORIES), np.float32))
        relaxed = pyro.distributions.RelaxedOneHotCategorical

        def guide(x: Any) -> None:
            pyro.module("encoder", encoder)
            with pyro.plate("images", len(x)):
                q = relaxed(temperature, logits=logits_of(encoder, x))
                pyro.sample("z", q.to_event(1))

        def model(x: Any) -> None:
            pyro.module("decoder", decoder)
            with pyro.plate("images", len(x)):
                z = pyro.sample("z", relaxed(temperature, logits=prior).to_event(1))
                pixels = decoder(z.reshape(*z.shape[:-2], VARIABLES * CATEGORIES))
                pyro.sample("x", pyro.distributions.Bernoulli(logits=pixels).to_event(1), obs=x)

        optimizer = pyro.optim.Adam({"lr": LEARNING_RATE})
        inference = pyro.infer.SVI(model, guide, optimizer, pyro.infer.Trace_ELBO())
        return lambda: inference.step(x) / len(x)

    return make


def with_storchastic(method: Callable[[Any], Any]) -> Callable[[Any], Make]:
    def make(storch: Any, params: Params, images: np.ndarray) -> Step:
        encoder, decoder = network(params["encoder"]), network(params["decoder"])
        estimator = method(storch.method)
        if hasattr(estimator, "temperature"):
            estimator.temperature.data.fill_(TEMPERATURE)
        parameters = [*encoder.parameters(), *decoder.parameters(), *estimator.parameters()]
        optimizer, images = adam(*parameters), _peers.to_torch(images)

        def step() -> Any:
            optimizer.zero_grad()
            x = storch.denote_independent(images, 0, "images")
            logits = encoder(x)
            logits = logits.reshape(*logits.shape[:-1], VARIABLES, CATEGORIES)
            # RELAX's training looks for a parameter of this name.
            q = torch.distributions.OneHotCategorical(probs=torch.softmax(logits, -1))
            storch.add_cost(divergence(F.log_softmax(logits, -1)), "divergence")
            storch.add_cost(distortion(decoder, estimator(q), x), "distortion")
            loss = storch.backward()
            optimizer.step()
            return loss.detach()

        return step

    return lambda storch: lambda params, images: make(storch, params, images)


assert SURROGATE_HIDDEN == 50, "Storchastic's own surrogate has so many hidden units"

#: Of each estimator, what makes its step of the module of the library.
STEPS: dict[str, dict[str, Callable[[Any], Make]]] = {
    "gumbel_softmax": {
        "PyTorch": lambda _: trained(gumbel_softmax),
        "Pyro": with_pyro,
        "Storchastic": with_storchastic(
            lambda method: method.GumbelSoftmax(
                "z", initial_temperature=TEMPERATURE, annealing_rate=0.0
            )
        ),
    },
    "leave_one_out": {
        "PyTorch": lambda _: trained(leave_one_out),
        "Storchastic": with_storchastic(
            lambda method: method.ScoreFunction(
                "z", n_samples=SAMPLES, baseline_factory="batch_average"
            )
        ),
    },
    "rebar": {
        "PyTorch": lambda _: controlled("rebar"),
        "Storchastic": with_storchastic(lambda method: method.REBAR("z")),
    },
    "relax": {
        "PyTorch": lambda _: controlled("relax"),
        "Storchastic": with_storchastic(
            lambda method: method.RELAX("z", in_dim=(VARIABLES, CATEGORIES))
        ),
    },
}
