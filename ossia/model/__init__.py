"""The one transformer that every config composes."""

from ossia.model.decoder import Decoder

__all__ = ["Decoder"]
