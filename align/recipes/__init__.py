"""Complete training runs as TOML: head, loss, data and schedule."""
