"""Tasks made from what other libraries define: models of transformers, modules of Lightning."""
