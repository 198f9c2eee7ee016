"""Checkpoints: snapshot, files, manifest, schedule, retention, upload, export."""
