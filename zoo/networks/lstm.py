"""A recurrent language model: an LSTM with orthogonal recurrent weights and dropout between layers.

Hochreiter & Schmidhuber 1997, with the dropout of Zaremba et al. 2014 ("Recurrent Neural Network
Regularization", section 3.1): on what goes from layer to layer, never on what goes from step to
step, which would forget. Orthogonal recurrent matrices keep the length of the state over many steps
(Saxe et al. 2014, section 3).

Shapes: B batch, T tokens, D embedding and hidden state, V vocabulary, L layers.
"""

from __future__ import annotations

from torch import Tensor, nn

from zoo.networks.base import Network, check_rates, check_sizes
from zoo.networks.fast import FastDropout
from zoo.networks.initializers import init_orthogonal, init_transformer


class Memory:
    """The state of an LSTM after the tokens seen so far."""

    def __init__(self) -> None:
        self.state: tuple[Tensor, Tensor] | None = None  # each (L, B, D)
        self.seen = 0


class LSTM(Network):
    """A recurrent language model: tokens in, logits of the next token out.

    Args:
        vocab_size: how many tokens there are.
        dim, depth: size of the embedding and of each layer's state, and layers.
        tied: the last layer's weights are those of the embedding (Press & Wolf 2017).
        embed_drop_rate: rate of dropout on the embeddings.
        drop_rate: rate of dropout between layers and after the last.

    Raises:
        ValueError: a size below one, or a rate outside [0, 1).
    """

    context_length = None  # it may run on for ever

    def __init__(
        self,
        vocab_size: int = 256,
        dim: int = 256,
        depth: int = 2,
        tied: bool = True,
        embed_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, dim=dim, depth=depth)
        check_rates(embed_drop_rate=embed_drop_rate, drop_rate=drop_rate)
        self.vocab_size = vocab_size
        self.embed = nn.Embedding(vocab_size, dim)
        self.embed_drop = FastDropout(embed_drop_rate)
        between = drop_rate if depth > 1 else 0.0  # torch has none after the last layer
        self.lstm = nn.LSTM(dim, dim, depth, dropout=between, batch_first=True)
        self.drop = FastDropout(drop_rate)
        self.head = nn.Linear(dim, vocab_size)
        init_transformer(self)
        init_orthogonal(self)
        if tied:
            self.head.weight = self.embed.weight

    def fallback_parameters(self) -> set[str]:
        """Matrices that are tables, which an optimizer for matrices leaves to its fallback."""
        return {"embed.weight", "head.weight"}

    def make_cache(self) -> Memory:
        """Makes an empty state for ``forward``."""
        return Memory()

    def forward(self, tokens: Tensor, cache: Memory | None = None) -> Tensor:
        """Tokens (B, T) → logits of each next token (B, T, V).

        Args:
            tokens: int64.
            cache: the state after the tokens before; it moves on by these T.
        """
        x = self.embed_drop(self.embed(tokens))
        x, state = self.lstm(x, None if cache is None else cache.state)
        if cache is not None:
            cache.state, cache.seen = state, cache.seen + tokens.shape[1]
        return self.head(self.drop(x))
