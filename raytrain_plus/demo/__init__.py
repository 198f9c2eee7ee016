"""The demo of elastic training on real images: `raytrain-plus demo`."""
