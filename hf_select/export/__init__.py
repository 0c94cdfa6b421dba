"""Selected rows as local files for other trainers: LLaMA-Factory, axolotl, open-instruct."""
