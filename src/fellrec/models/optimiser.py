"""AdamW over named tensors, with a state that goes to disk by name.

Head and tail step on the client, the trunk steps on the server, each with one of these. Clipping
needs the norm over all stages, so the norm is told to the other side before anyone steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fellrec.errors import RunError

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class OptimiserSettings:
    """learning_rate, weight_decay: of AdamW. clip: largest norm over all stages, 0 for none.

    proximal: strength μ of the pull towards the anchors, 0 for none.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    proximal: float = 0.0


class Optimiser:
    """AdamW for the trainable ones among `parameters` (name -> tensor).

    anchors: what parameters are pulled towards with `settings.proximal`, by name; those without one
    are not. Copied, so that it may be the parameters themselves as they are now. The moments of
    parameters that are frozen for the time being are kept as they are.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: OptimiserSettings,
        anchors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._parameters = {n: p for n, p in parameters.items() if p.requires_grad}
        self._resting = parameters.keys() - self._parameters.keys()
        self._rest: dict[str, Tensor] = {}
        self._settings = settings
        self._anchors = {
            name: anchor.detach().to(self._parameters[name].device, copy=True)
            for name, anchor in (anchors or {}).items()
            if settings.proximal and name in self._parameters
        }
        values = list(self._parameters.values())
        self._adam = (
            torch.optim.AdamW(
                values, settings.learning_rate, weight_decay=settings.weight_decay, fused=True
            )
            if values
            else None
        )

    @property
    def parameters(self) -> Iterable[nn.Parameter]:
        """What is trained."""
        return self._parameters.values()

    def pull(self) -> None:
        """Add the proximal term's gradient, μ (θ - anchor), before the norm is taken.

        That of μ/2 ‖θ - anchor‖² in the loss (Li et al. 2020, FedProx, arXiv 1812.06127). The loss
        that is reported stays the recommender's.
        """
        for name, anchor in self._anchors.items():
            parameter = self._parameters[name]
            if parameter.grad is not None:
                difference = parameter.detach() - anchor
                parameter.grad.add_(difference, alpha=self._settings.proximal)

    def squared_norm(self) -> float:
        """Squared L2 norm of all gradients of this side."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        if not gradients:
            return 0.0
        norms = torch._foreach_norm(gradients)
        return float(torch.stack(norms).double().square().sum())

    def step(self, squared_norm: float) -> None:
        """Clip by the norm over all stages, step, and forget the gradients.

        squared_norm: summed over the stages of client and server, so both sides scale alike.
        """
        if self._adam is None:
            return
        clip, norm = self._settings.clip, squared_norm**0.5
        if clip and norm > clip:
            gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
            torch._foreach_mul_(gradients, clip / norm)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return the moments and step counts as `exp_avg/<name>` … tensors, on the CPU."""
        if self._adam is None:
            return dict(self._rest)
        return self._rest | {
            f"{moment}/{name}": self._adam.state[parameter][moment].cpu()
            for name, parameter in self._parameters.items()
            for moment in _MOMENTS
            if parameter in self._adam.state
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over moments from `state()`; tensors without any start anew.

        Raises RunError for a moment of an unknown tensor or of another shape.
        """
        self._rest = {}
        if self._adam is None:
            return
        self._adam.state.clear()
        for key, value in state.items():
            moment, _, name = key.partition("/")
            if name in self._resting:
                self._rest[key] = value
                continue
            parameter = self._parameters.get(name)
            if parameter is None or moment not in _MOMENTS:
                raise RunError(f"the optimiser's state holds {key!r}, which this model does not")
            if moment != "step" and value.shape != parameter.shape:
                raise RunError(f"the optimiser's state of {name} has shape {tuple(value.shape)}")
            self._adam.state[parameter][moment] = value.to(parameter.device, copy=True)


def without(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return an optimiser's state with the moments of `names` reset (METHOD M4)."""
    reset = set(names)
    return {key: value for key, value in state.items() if key.partition("/")[2] not in reset}
