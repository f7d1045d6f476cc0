"""FELLRec: federated, split, balanced fine-tuning of one language model as a recommender."""
