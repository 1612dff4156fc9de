"""Gin files: reading, checking without heavy imports, and building objects.

  reading         gin files and bindings as data
  checking        checks names, parameters, macros and required values
  signatures, targets    functions and classes that names refer to, from source
  binding_values, references    values and references against types of parameters
  places          checks model_dir, data_dir and checkpoints before heavy imports
  building        binds a checked configuration and builds its objects
  mains           gin flags, and running of mains
  command_flags, setting_types           flags of the mains; types of settings
  requirements    compares installed versions with those that an extra needs
  former_names    names of earlier versions: modules, functions, classes, parameters
  t5x_names       flags, macros and parameters of T5X with another name here

The only user of gin. May import data and files. `setting_types` imports nothing and may
be used everywhere.
"""
