"""Checkpoints of other libraries, in both directions.

  families       model families by name, with their modules, tables and special ids
  rules          tables that rename parameters: foreign name, our name, transformation
  hf_t5, hf_bert, hf_albert, hf_electra, hf_xlnet, hf_transformer_xl
                 Hugging Face's configurations and parameters
  huggingface    folders in Hugging Face's layout, and repositories of its hub
  safetensors, torch_files, state_dicts
                 files of weights, read without torch; the model within a state dict
  t5x, t5_names, flax_msgpack
                 T5X's checkpoints of every generation
  mesh_tf        Mesh-TensorFlow's checkpoints of T5
  side_notes     settings that those two formats lack, as JSON beside a checkpoint
  vocabularies, vocabulary_files, sentencepiece, checkpoint_ids
                 tokenizer files, and which ids a checkpoint has
  layer_stacks, mismatches
                 layers stacked and unstacked; arrays that do not fit a model

May import files, layers, models, proteins and types.
"""
