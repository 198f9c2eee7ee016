"""A small decoder-only transformer (Radford et al. 2019, GPT-2), pre-norm, with tied embeddings.

Shapes: B sequences, T tokens, H heads, D channels, V words.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Causal self-attention.

    Args:
        width: channels, D.
        heads: how many heads share them, H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Mix each token with those before it."""
        b, t, d = x_btd.shape
        q, k, v = self.qkv(x_btd).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.out(self.attend(q, k, v).transpose(1, 2).reshape(b, t, d))
        return mixed

    def attend(self, q_bhtd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor) -> Tensor:
        """Return the values, weighted by softmax(q k / sqrt(d)) over the tokens up to each."""
        attended: Tensor = functional.scaled_dot_product_attention(
            q_bhtd, k_bhtd, v_bhtd, is_causal=True
        )
        return attended


class FeedForward(nn.Module):
    """Two linear layers with a GELU between: `down(gelu(up(x)))`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Change each token by itself."""
        changed: Tensor = self.down(functional.gelu(self.up(x_btd)))
        return changed


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        x_btd = x_btd + self.attention(self.attention_norm(x_btd))
        changed: Tensor = x_btd + self.feed_forward(self.feed_forward_norm(x_btd))
        return changed


class GPT(nn.Module):
    """Predicts each next token.

    Args:
        vocabulary: number of words, V.
        context: the most tokens that it can look at.
        layers, width, heads: blocks, channels D, and heads H.
    """

    def __init__(
        self,
        vocabulary: int = 256,
        context: int = 128,
        layers: int = 3,
        width: int = 96,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.context = context
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if deep else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.head.weight = self.words.weight

    def forward(self, tokens_bt: Tensor) -> Tensor:
        """Map tokens (B, T) of any integer type to logits (B, T, V)."""
        tokens = tokens_bt.long()
        positions = self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        logits: Tensor = self.head(self.norm(self.blocks(self.words(tokens) + positions)))
        return logits
