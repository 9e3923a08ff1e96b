"""Losses, one loop, four methods (SFT, preferences, policy gradient, PPO) and reward models."""
