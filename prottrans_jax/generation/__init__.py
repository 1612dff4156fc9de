"""New proteins from T5, XLNet and Transformer-XL.

  sampling         how the next token is chosen: temperature, top-k, top-p, guards
  decoding         the loop over tokens, compiled as one program
  prompts          what each family starts from: a prompt, or a protein with masks
  generator        proteins for many prompts, in batches
  generated_files  generated proteins as FASTA or JSON Lines

May import encoders, files, models, proteins and types. No TensorFlow, no gin, no torch.
"""
