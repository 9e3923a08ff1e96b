"""What commands share: options, the checks behind them, and what they load."""
