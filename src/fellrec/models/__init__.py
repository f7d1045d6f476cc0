"""What a recommender is: stages of a base model, adapters on them, and the backbones."""
