"""Write predictions to disk: submission files, label maps and overlays."""
