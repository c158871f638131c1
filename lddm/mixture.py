"""A mixture of products over the tokens of a segment: the discrete latent under which they are independent.

`p(x) = sum_k pi_k prod_j P_k,j(x_j)`. What a factorised token step cannot express is the dependence between the tokens that
it draws together, and that is strongest between neighbours: a latent that names the component of each segment takes it
over, and given it one token step is exact. Fitted by EM (Dempster, Laird & Rubin 1977), which is coordinate ascent
on the same bound that the networks beside it follow by gradients, and needs a handful of passes.

Shapes: N segments of C tokens, V symbols, M components, F = C V entries of a one-hot segment, K features of a component.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.diffusion.masked import draw_tokens
from harness.nn.slices import Logits
from lddm.codebook import Codebook

#: Segments of a block, whose scores against all components then stay in a core's cache, and at most so many scores.
_ROWS, _SCORES = 2048, 1 << 23
#: Above so many entries one-hot segments are not written out: their products do V times the work of the sums they stand for.
_MOST_ENTRIES = 1024
#: Features of a component at most: what networks map to their width must not grow with the vocabulary.
_MOST_FEATURES, _SKETCH_SEED = 1024, 73
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


class ProductMixture(Codebook):
    """Tables of the mixture; a buffer each, because they are fitted in closed form and no gradient reaches them.

    `log_weight_M` are the log pi_k, `log_table_MF` the log P_k,j(v), with j the slower index of F. `feature_MK` is what
    networks know of a component: its table less the mean one, and of a large one a sketch, whose inner products are those of
    the tables in the mean (Charikar et al. 2002; Weinberger et al. 2009). Before `fit` all components are one uniform law.
    """

    log_table_MF: Tensor
    fills = True

    def __init__(self, components: int, segment: int, vocab_size: int) -> None:
        super().__init__(segment, vocab_size)
        uniform = torch.full((components, segment * vocab_size), 1.0 / vocab_size)
        self.register_buffer("log_weight_M", torch.full((components,), 1.0 / components).log())
        self.register_buffer("log_table_MF", uniform.log())
        self.register_buffer("feature_MK", torch.zeros(components, min(uniform.shape[1], _MOST_FEATURES)))

    def laws(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """The tables of the components, and the row of each token of segments with codes (B, S)."""
        row_BL = code.repeat_interleave(self.segment, dim=1) * self.segment + self.places(*code.shape)
        return self.log_table_MF.view(-1, self.vocab_size), row_BL

    def marginal_F(self) -> Tensor:
        return torch.logsumexp(self.log_table_MF + self.log_weight_M[:, None], 0)

    @property
    def _small(self) -> bool:
        return self.log_table_MF.shape[1] <= _MOST_ENTRIES

    def _one_hot(self, x_NC: Tensor) -> Tensor:
        return F.one_hot(x_NC, self.vocab_size).flatten(1).float()

    def scores(self, x_NC: Tensor) -> Tensor:
        """log pi_k + log p(x | k) for each component, (N, M) float32: the log posterior but for log p(x)."""
        with torch.autocast(x_NC.device.type, enabled=False):
            if self._small:
                return torch.addmm(self.log_weight_M, self._one_hot(x_NC), self.log_table_MF.T)
            score_MN = self.log_weight_M[:, None].repeat(1, len(x_NC))
            for entry_N in self.entries(x_NC).T:
                score_MN += self.log_table_MF.index_select(1, entry_N)
            return score_MN.T.contiguous()

    def seen(self, x_NC: Tensor, shown_NC: Tensor) -> Tensor:
        """log p(the shown tokens of a segment | k) for each component, (N, M) float32."""
        with torch.autocast(x_NC.device.type, enabled=False):
            seen_MN = self.log_weight_M.new_zeros(len(self.log_weight_M), len(x_NC))
            for entry_N, shown_N in zip(self.entries(x_NC).T, shown_NC.T, strict=True):
                seen_MN += self.log_table_MF.index_select(1, entry_N) * shown_N
            return seen_MN.T.contiguous()

    def _count(self, count_MF: Tensor, share_NM: Tensor, x_NC: Tensor) -> None:
        """Add the shares of segments to the entries of their tokens, in place."""
        if self._small:
            count_MF.addmm_(share_NM.T, self._one_hot(x_NC))
        else:
            share_MN = share_NM.T.contiguous()
            for entry_N in self.entries(x_NC).T:
                count_MF.scatter_add_(1, entry_N.expand(len(count_MF), -1), share_MN)

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
        rows_at_once = max(1, min(_ROWS, _SCORES // M))
        x_UC = torch.from_numpy(rows.astype(np.int64)).to(device)
        n_U = torch.from_numpy(counts).to(device, torch.float32)
        blocks = list(zip(x_UC.split(rows_at_once), n_U.split(rows_at_once), strict=True))
        marginal_1F = torch.zeros(1, self.log_table_MF.shape[1], device=device)
        for x, n in blocks:
            self._count(marginal_1F, n[:, None], x)
        marginal_1F /= n_U.sum()
        choice = counts.astype(np.float64) ** _POWER
        few = len(rows) < M  # then some components are twins, which does no harm
        first = np.random.default_rng((seed, 61)).choice(len(rows), M, replace=few, p=choice / choice.sum())
        table_MF = ((1.0 - _CENTRE) * marginal_1F).repeat(M, 1)
        at_MC = self.entries(x_UC[torch.from_numpy(first).to(device)])
        table_MF.scatter_add_(1, at_MC, torch.full(at_MC.shape, _CENTRE, device=device))
        self._put(torch.full((M,), 1.0 / M, device=device), table_MF)
        total = 0.0
        for _ in range(steps):
            mass_M, count_MF, total = torch.zeros(M, device=device), table_MF.zero_(), 0.0
            for x, n in blocks:
                score_NM = self.scores(x)
                log_p_N = torch.logsumexp(score_NM, 1)
                share_NM = (score_NM - log_p_N[:, None]).exp_().mul_(n[:, None])
                total += float(n @ log_p_N)
                mass_M += share_NM.sum(0)
                self._count(count_MF, share_NM, x)
            self._put(mass_M + 0.5, count_MF.add_(smoothing * marginal_1F))
        return total / float(n_U.sum())

    def _put(self, weight_M: Tensor, table_MF: Tensor) -> None:
        """Take over what is proportional to pi and to the tables; `table_MF` is used up."""
        p_MCV = table_MF.view(-1, self.segment, self.vocab_size)
        p_MCV /= p_MCV.sum(-1, keepdim=True)
        self.log_weight_M.copy_((weight_M / weight_M.sum()).log())
        # Not minus infinity: a symbol that the data lack is impossible under all components, and scores are differences.
        torch.clamp(table_MF, min=1e-12, out=self.log_table_MF).log_()
        feature_MK = self._sketch(table_MF.sub_(table_MF.mean(0)))
        # Of length sqrt(K) in the mean, as a row of unit normals has: what a linear layer expects.
        size = feature_MK.norm(dim=1).mean().clamp(min=1e-6)
        self.feature_MK.copy_(feature_MK * feature_MK.shape[1] ** 0.5 / size)

    def _sketch(self, table_MF: Tensor) -> Tensor:
        """Rows as they are where they are short; of longer ones K sums of entries with random signs, fixed once."""
        entries, features = table_MF.shape[1], self.feature_MK.shape[1]
        if entries == features:
            return table_MF
        generator = torch.Generator().manual_seed(_SKETCH_SEED)
        place_F = torch.randint(features, (entries,), generator=generator).to(table_MF.device)
        sign_F = torch.randint(2, (entries,), generator=generator).to(table_MF) * 2.0 - 1.0
        return torch.zeros_like(self.feature_MK).index_add_(1, place_F, table_MF.mul_(sign_F))
