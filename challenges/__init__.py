"""The sister systems: drug response, modality prediction, synthetic cells. They use torch, which the crunch never needs."""
