"""Layer normalisation that can be differentiated twice under vmap."""

from __future__ import annotations

from torch import Tensor, nn

from core.sequence_model import transforms_active


class LayerNorm(nn.LayerNorm):
    """y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias over the last dimension (Ba et al. 2016, equation 4).

    torch's own kernel otherwise; under a torch.func transform plain operations, because there the second derivative of
    torch's kernel takes mean and deviation as constants (seen in 2.13: a meta-gradient 0.2 % off, without an error).
    """

    def forward(self, input: Tensor) -> Tensor:
        """x and y: (..., D)."""
        if not transforms_active():
            return super().forward(input)
        centred = input - input.mean(-1, keepdim=True)
        scaled = centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        if self.weight is not None:
            scaled = scaled * self.weight
        return scaled if self.bias is None else scaled + self.bias
