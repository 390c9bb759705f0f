"""`bronze report`: one page of HTML about the tables of a lake, which needs nothing but itself."""
