"""sandboxd runs code nobody trusts: one program, one fresh container, exact measurements, nothing left."""

__version__ = "0.1.0"
