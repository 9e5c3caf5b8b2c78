"""Networks for inference alone: deployed, their plans, exported."""
