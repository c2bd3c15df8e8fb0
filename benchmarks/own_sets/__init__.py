"""The bench of own data: sets of real material in package registries, built by a script, none of it committed."""
