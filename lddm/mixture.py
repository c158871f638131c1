"""A mixture of products over the tokens of a segment: the discrete latent under which they are independent.

`p(x) = sum_k pi_k prod_j P_k,j(x_j)`. What a factorised token step cannot express is the dependence between the tokens that
it draws together, and that is strongest between neighbours: a latent that names the component of each segment takes it
over, and given it one token step is exact. Fitted by EM (Dempster, Laird & Rubin 1977), which is coordinate ascent
on the same bound that the networks beside it follow by gradients, and needs a handful of passes.

Shapes: N segments of C tokens, V symbols, M components, F = C V entries of a one-hot segment.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.diffusion.masked import draw_tokens
from harness.nn.slices import Logits

#: Segments of a block: its scores against all components then stay in a core's cache.
_ROWS = 2048
#: Numbers that a block of `posterior` keeps, which has C for each segment and component.
_SEEN_NUMBERS = 1 << 21
#: After so many tokens weights are scaled: the tables' least entry (1e-12) to this power is a number in float32 still.
_RESCALE = 3
#: Instead of 0, where its logarithm is taken.
_LEAST = 1e-20
#: Power of a segment's count in the choice of first centres; 1 would choose the most frequent ones again and again.
_POWER = 0.75
#: How much of a component's first table is its centre; the rest is the marginal law, so that nothing is impossible.
_CENTRE = 0.6


class ProductMixture(nn.Module):
    """Tables of the mixture; a buffer each, because they are fitted in closed form and no gradient reaches them.

    `log_weight_M` are the log pi_k, `log_table_MF` the log P_k,j(v), with j the slower index of F. Before `fit` all
    components are one uniform law.
    """

    log_weight_M: Tensor
    log_table_MF: Tensor
    feature_MF: Tensor

    def __init__(self, components: int, segment: int, vocab_size: int) -> None:
        super().__init__()
        self.segment, self.vocab_size = segment, vocab_size
        uniform = torch.full((components, segment * vocab_size), 1.0 / vocab_size)
        self.register_buffer("log_weight_M", torch.full((components,), 1.0 / components).log())
        self.register_buffer("log_table_MF", uniform.log())
        self.register_buffer("feature_MF", torch.zeros_like(uniform))

    def one_hot(self, x_NC: Tensor) -> Tensor:
        """(N, C) ids to (N, F) float32."""
        return F.one_hot(x_NC, self.vocab_size).flatten(1).float()

    def scores(self, x_NC: Tensor) -> Tensor:
        """log pi_k + log p(x | k) for each component, (N, M) float32: the log posterior but for log p(x)."""
        with torch.autocast(x_NC.device.type, enabled=False):
            return torch.addmm(self.log_weight_M, self.one_hot(x_NC), self.log_table_MF.T)

    # ---- what is known of each token by itself ---------------------------------------------------------------------
    @torch.no_grad()
    def posterior(self, evidence_NCV: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x_j | evidence of the whole segment), (N, C, V), and the evidence's log probability, (N,), both float32.

        `evidence_NCV` is log p(what was seen of token j | x_j = v), up to terms that all symbols share (the log
        probability has the same terms): of a noisy token, or of a known one, minus infinity for all symbols but that. The
        sum over components and symbols is exact: p(k | seen) prop. to pi_k prod_j sum_v P_k,j(v) p(seen_j | v).
        """
        with torch.autocast(evidence_NCV.device.type, enabled=False):
            rows = max(1, _SEEN_NUMBERS // (self.segment * len(self.log_weight_M)))
            table_CVM = self.log_table_MF.exp().view(-1, self.segment, self.vocab_size).permute(1, 2, 0)
            blocks = [self._posterior(e_NCV, table_CVM) for e_NCV in evidence_NCV.float().split(rows)]
        return torch.cat([log_p for log_p, _ in blocks]), torch.cat([total for _, total in blocks])

    def _posterior(self, evidence_NCV: Tensor, table_CVM: Tensor) -> tuple[Tensor, Tensor]:
        top_NC1 = evidence_NCV.amax(-1, keepdim=True)
        seen_CNV = (evidence_NCV - top_NC1).exp().transpose(0, 1)
        each_CNM = torch.bmm(seen_CNV, table_CVM)  # at least the tables' least entry, since the greatest of `seen` is 1
        log_N, weight_NM = top_NC1.sum((1, 2)), self.log_weight_M.exp().repeat(len(top_NC1), 1)
        for j, each_NM in enumerate(each_CNM, 1):
            weight_NM *= each_NM
            if j % _RESCALE == 0 or j == self.segment:
                total_N1 = weight_NM.sum(-1, keepdim=True)
                weight_NM /= total_N1
                log_N = log_N + total_N1[:, 0].log()
        for each_NM in each_CNM:  # without token j itself: what the others say of the component
            torch.div(weight_NM, each_NM, out=each_NM)
        p_CNV = torch.bmm(each_CNM, table_CVM.transpose(1, 2)) * seen_CNV
        log_p_CNV = p_CNV.clamp(min=_LEAST).log().log_softmax(-1)
        return log_p_CNV.transpose(0, 1), log_N

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` segments, (n, C) int64, each token given its segment's component, all in float64."""
        u_n = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
        cdf_M = self.log_weight_M.double().softmax(0).cumsum(0)  # one law for all: no row of M numbers for each
        k_n = torch.searchsorted(cdf_M, u_n * cdf_M[-1], right=True).clamp_(max=len(cdf_M) - 1)
        law_RV = self.log_table_MF.view(-1, self.vocab_size)
        row_nC = k_n[:, None] * self.segment + torch.arange(self.segment, device=k_n.device)
        log_p = Logits(lambda row_r: law_RV[row_r], self.vocab_size, row_nC.flatten())
        return draw_tokens(log_p, generator)[0].view(n, self.segment)

    # ---- learning ---------------------------------------------------------------------------------------------------
    def fitted_numbers(self) -> int:
        """How many numbers `fit` learns."""
        return self.log_weight_M.numel() + self.log_table_MF.numel()

    def fit_sequences(self, x_NL: np.ndarray, most: int, steps: int, smoothing: float) -> None:
        """`fit` on the segments of sequences, of which at most `most` are chosen at random."""
        x_NC = np.asarray(x_NL).reshape(-1, self.segment)
        if len(x_NC) > most:
            x_NC = x_NC[np.random.default_rng(67).choice(len(x_NC), most, replace=False)]
        self.fit(x_NC, steps, smoothing)

    @torch.no_grad()
    def fit(self, x_NC: np.ndarray, steps: int, smoothing: float, seed: int = 0) -> float:
        """`steps` of EM from centres drawn among the segments; returns the mean log p(x) of the last E-step, in nats.

        `smoothing` is how many segments of the marginal law are added to each component. Equal segments are one row with
        a count. Deterministic given the arguments.
        """
        rows, counts = np.unique(x_NC, axis=0, return_counts=True)
        device, M = self.log_weight_M.device, len(self.log_weight_M)
        x_UC = torch.from_numpy(rows.astype(np.int64)).to(device)
        n_U = torch.from_numpy(counts).to(device, torch.float32)
        marginal_F = (
            sum(n @ self.one_hot(x) for x, n in zip(x_UC.split(_ROWS), n_U.split(_ROWS), strict=True)) / n_U.sum()
        )
        choice = counts.astype(np.float64) ** _POWER
        few = len(rows) < M  # then some components are twins, which does no harm
        first = np.random.default_rng((seed, 61)).choice(len(rows), M, replace=few, p=choice / choice.sum())
        table_MF = _CENTRE * self.one_hot(x_UC[torch.from_numpy(first).to(device)]) + (1.0 - _CENTRE) * marginal_F
        self._put(torch.full((M,), 1.0 / M, device=device), table_MF)
        total = 0.0
        for _ in range(steps):
            mass_M, count_MF, total = torch.zeros(M, device=device), torch.zeros_like(table_MF), 0.0
            for x, n in zip(x_UC.split(_ROWS), n_U.split(_ROWS), strict=True):
                score_NM = self.scores(x)
                log_p_N = torch.logsumexp(score_NM, 1)
                share_NM = (score_NM - log_p_N[:, None]).exp_().mul_(n[:, None])
                total += float(n @ log_p_N)
                mass_M += share_NM.sum(0)
                count_MF.addmm_(share_NM.T, self.one_hot(x))
            self._put(mass_M + 0.5, count_MF + smoothing * marginal_F)
        return total / float(n_U.sum())

    def _put(self, weight_M: Tensor, table_MF: Tensor) -> None:
        """Take over what is proportional to pi and to the tables."""
        p_MCV = table_MF.view(-1, self.segment, self.vocab_size)
        p_MCV = p_MCV / p_MCV.sum(-1, keepdim=True)
        self.log_weight_M.copy_((weight_M / weight_M.sum()).log())
        # Not minus infinity: a symbol that the data lack is impossible under all components, and scores are differences.
        self.log_table_MF.copy_(p_MCV.clamp(min=1e-12).log().flatten(1))
        feature_MF = (p_MCV - p_MCV.mean(0)).flatten(1)
        # Of length sqrt(F) in the mean, as a row of unit normals has: what a linear layer expects.
        size = feature_MF.norm(dim=1).mean().clamp(min=1e-6)
        self.feature_MF.copy_(feature_MF * feature_MF.shape[1] ** 0.5 / size)
