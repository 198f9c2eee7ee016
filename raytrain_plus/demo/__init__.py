"""The main job, shown on real images: `raytrain-plus demo`."""
