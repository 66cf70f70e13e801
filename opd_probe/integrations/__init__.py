"""Into the training loops of others: measured while a run trains, in the names and files of everything else here."""
