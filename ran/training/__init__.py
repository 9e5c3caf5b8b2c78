"""The run: settings, recipes, engine, callbacks and saving."""
