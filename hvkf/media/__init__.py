"""What a video file says about its pictures, and reading and writing them accordingly."""
