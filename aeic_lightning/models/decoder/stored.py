"""A decoder that is kept but not run, in a sender."""

from aeic_lightning.models.stored import Stored


class StoredDecoder(Stored):
    """The tensors of a decoder. The sender needs neither its networks nor their libraries."""
