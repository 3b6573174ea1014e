"""An NNCF config, explained: what ``bootstrapnas config check`` says."""
