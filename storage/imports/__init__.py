"""Other people's data as samples: rows read from files, checked one by one, stored once."""
