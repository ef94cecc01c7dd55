"""The frozen token table of a text encoder with learned vectors appended."""

import torch
import torch.nn as nn


class ConceptEmbedding(nn.Module):
    """The frozen token table with learned rows appended.

    Ids from `first_id` on are looked up in `rows` (N, D), float32, or float64 if the base table
    is; all others in `base`. Results have the base table's dtype.
    """

    def __init__(self, base: nn.Embedding, first_id: int):
        super().__init__()
        self.base = base
        self.first_id = first_id
        # In a container, so that the base table stays the module's first parameter, from which
        # libraries take a model's dtype.
        self.learned = nn.ParameterDict()
        weight = base.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.set_rows(nn.Parameter(weight.new_empty((0, base.embedding_dim), dtype=dtype)))

    @property
    def rows(self) -> nn.Parameter:
        """The learned rows (N, D)."""
        return self.learned["rows"]

    def set_rows(self, rows: nn.Parameter) -> None:
        """Use `rows` (N, D) as the learned rows."""
        self.learned["rows"] = rows

    @property
    def weight(self) -> torch.Tensor:
        """The frozen table (V, D), for libraries that inspect it."""
        return self.base.weight

    def extend(self, rows: torch.Tensor) -> None:
        """Append rows (n, D) as the next ids."""
        old = self.rows.data
        self.set_rows(nn.Parameter(torch.cat([old, rows.to(old)])))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        new = ids >= self.first_id
        known = self.base(torch.where(new, 0, ids))  # (..., D)
        if len(self.rows) == 0:
            return known
        learned = self.rows[torch.where(new, ids - self.first_id, 0)].to(known.dtype)
        return torch.where(new[..., None], learned, known)
