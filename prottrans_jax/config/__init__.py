"""Gin files: read, checked without importing what they configure, and built.

  reading         gin files and bindings as data
  checking        names, parameters, macros and required values, all at once
  signatures, targets, binding_values    what a name stands for, read from source
  places          model_dir, data_dir and checkpoints looked at before heavy imports
  building        binds a checked configuration and builds its objects
  command_flags, setting_types           flags of the mains; types of settings
  former_names    modules by the names that earlier versions gave them

The only user of gin. `setting_types` imports nothing and may be used everywhere.
"""
