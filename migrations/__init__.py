"""Numbered SQL, forward only; ragblame.database applies it. A landed file is never edited."""
