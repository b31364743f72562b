"""Presets: specifications of studies, one TOML file each, named TASK-PRESET.toml."""
