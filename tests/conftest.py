"""Turns the shapes in the package's signatures into checks for the whole test session."""

from jaxtyping import install_import_hook

install_import_hook("ssd_lightning", "typechecker.typechecker")
