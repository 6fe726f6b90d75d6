"""The Ray Train job: objective, step, checkpoint, loop. `ray.train` is used only here."""
