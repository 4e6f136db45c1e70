"""Synthetic cells: a conditional GAN that makes believable cells of a named type. Start with `data`."""
