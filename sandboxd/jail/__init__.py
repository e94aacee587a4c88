"""The sandbox itself: planning it, building it, holding it, measuring it, taking it down. Only the launcher acts
here."""
