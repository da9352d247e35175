"""Which bytes to hold in memory at once, and how to cut them into rows."""

from teleojax.blocks._plan import BLOCK_ROWS as BLOCK_ROWS
from teleojax.blocks._plan import ROW as ROW
from teleojax.blocks._plan import Frame as Frame
from teleojax.blocks._plan import Piece as Piece
from teleojax.blocks._plan import Window as Window
from teleojax.blocks._plan import plan_frames as plan_frames
from teleojax.blocks._plan import plan_windows as plan_windows
from teleojax.blocks._plan import split_piece as split_piece
from teleojax.blocks._plan import window_bytes as window_bytes
from teleojax.blocks._prefetch import LoadedWindow as LoadedWindow
from teleojax.blocks._prefetch import aligned_buffer as aligned_buffer
from teleojax.blocks._prefetch import load_windows as load_windows
from teleojax.sources._storage import ALIGNMENT as ALIGNMENT
