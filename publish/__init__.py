"""What leaves the workspace: citations of what was used, and heads and stores as repositories of the hub."""
