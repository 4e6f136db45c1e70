"""The sister systems. They use torch, which the crunch never needs."""
