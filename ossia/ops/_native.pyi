"""The native module, native/src/module.cpp.

Tensors are on the CPU. They are contiguous, of one type within a call, bfloat16 or float32, and
results are written to `y`, unless a method says otherwise. Arguments are positional. Whatever does
not fit together raises ValueError, an id or a page that there is not IndexError, before any memory
is touched.
"""

from torch import Tensor

class Matrix:
    """The weight (rows, cols) of a linear layer, and its bias (rows,).

    Dense: bfloat16 or float32 whose rows or columns are contiguous. Quantized: int8 codes, float32
    scales (rows, ceil(cols / group)), and `group`, a multiple of 32 up to 256.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        scales: Tensor | None = None,
        group: int = 0,
    ) -> None: ...
    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...
    @property
    def scales(self) -> Tensor | None: ...
    @property
    def group(self) -> int: ...

class Stack:
    """The same matrix (rows, cols) of each expert of a layer, and their biases (experts, rows).

    Dense: bfloat16 or float32 (experts, rows, cols), each matrix with contiguous rows or columns.
    MXFP4: uint8 blocks (experts, rows, cols/32, 16) and scales (experts, rows, cols/32).
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, scales: Tensor | None = None
    ) -> None: ...
    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...
    @property
    def scales(self) -> Tensor | None: ...

class Experts:
    """A layer's experts: gate_up (experts, 2 * inter, hidden), its rows gate, up, gate, up, ...;
    down (experts, hidden, inter). With `clamped` their activation is gpt-oss's SwiGLU.
    """

    def __init__(
        self,
        gate_up: Stack,
        down: Stack,
        clamped: bool = False,
        limit: float = 0.0,
        alpha: float = 0.0,
    ) -> None: ...
    @property
    def gate_up(self) -> Stack: ...
    @property
    def down(self) -> Stack: ...
    @property
    def clamped(self) -> bool: ...
    @property
    def limit(self) -> float: ...
    @property
    def alpha(self) -> float: ...

class Pages:
    """Keys and values of one layer, (pages, page_size, kv_heads, head_dim); of int8 ones also the
    float32 scales (pages, page_size, kv_heads).
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        key_scales: Tensor | None = None,
        value_scales: Tensor | None = None,
    ) -> None: ...
    @property
    def keys(self) -> Tensor: ...
    @property
    def values(self) -> Tensor: ...
    @property
    def key_scales(self) -> Tensor | None: ...
    @property
    def value_scales(self) -> Tensor | None: ...

class Tables:
    """The sequences of one step: int32 page_table (sequences, columns), int64 lengths and
    query_lengths (sequences,); see `ops.paged.StepTables`.
    """

    def __init__(self, page_table: Tensor, lengths: Tensor, query_lengths: Tensor) -> None: ...
    @property
    def page_table(self) -> Tensor: ...
    @property
    def lengths(self) -> Tensor: ...
    @property
    def query_lengths(self) -> Tensor: ...

class Edits:
    """See `ops.sampling.Edits`; without arguments it edits nothing."""

    def __init__(
        self,
        rows: Tensor | None = None,
        lengths: Tensor | None = None,
        ids: Tensor | None = None,
        biases: Tensor | None = None,
        counts: Tensor | None = None,
        repetition: Tensor | None = None,
        frequency: Tensor | None = None,
        presence: Tensor | None = None,
    ) -> None: ...
    @property
    def rows(self) -> Tensor | None: ...
    @property
    def lengths(self) -> Tensor | None: ...
    @property
    def ids(self) -> Tensor | None: ...
    @property
    def biases(self) -> Tensor | None: ...
    @property
    def counts(self) -> Tensor | None: ...
    @property
    def repetition(self) -> Tensor | None: ...
    @property
    def frequency(self) -> Tensor | None: ...
    @property
    def presence(self) -> Tensor | None: ...

class SamplingTable:
    """See `ops.sampling.SamplingTable`."""

    def __init__(
        self,
        scale: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        log2_min_p: Tensor,
        uniforms: Tensor,
        bits: Tensor | None,
        edits: Edits,
    ) -> None: ...
    @property
    def scale(self) -> Tensor: ...
    @property
    def top_k(self) -> Tensor: ...
    @property
    def top_p(self) -> Tensor: ...
    @property
    def log2_min_p(self) -> Tensor: ...
    @property
    def uniforms(self) -> Tensor: ...
    @property
    def bits(self) -> Tensor | None: ...
    @property
    def edits(self) -> Edits: ...

def watch(begin: int, size: int, line: str) -> None:
    """End the process with `line` on stderr and exit code 2 if a file that is mapped to this memory
    becomes too short to be read from it: where the system raises SIGBUS nothing can be raised.
    """

def unwatch(begin: int) -> None:
    """End that for the memory that begins there."""

def time_stages(machine: Machine, /) -> None:
    """Measure the stages of that machine's operations from now on."""

def stages(machine: Machine, /) -> list[tuple[str, int, float, float]]:
    """End that: each stage's name, calls, seconds on the clock, and seconds that all threads
    together were busy.
    """

class Recording:
    """Machines' operations, kept between `begin` and `end` on one thread, to be run again."""

    def __init__(self) -> None: ...
    def begin(self) -> None:
        """Raises ValueError if one is under way on this thread, or this one began before."""
    def end(self) -> None: ...
    def run(self) -> None:
        """Run all of them again, on the same memory. Raises ValueError before `end`."""
    @property
    def size(self) -> int: ...

class Machine:
    """Kernels of one instruction set and the threads they run on."""

    def __init__(self, threads: int, isa: str) -> None:
        """Raises ValueError for an instruction set that the processor lacks ("" is the best), and
        for more threads than the system starts.
        """
    @property
    def isa(self) -> str: ...
    @property
    def remark(self) -> str:
        """Why a better instruction set that the processor has is not used, or not for bytes, or
        empty.
        """
    @property
    def multiplies_bytes(self) -> bool:
        """Whether rounded activations are multiplied where those in bfloat16 are: not if the matrix
        unit has no products of bytes.
        """
    @property
    def threads(self) -> int: ...
    def pin(self) -> None:
        """Pin each thread but the caller to a processor; does nothing where the system cannot."""
    def share_threads(self) -> None:
        """Compute on the threads of the OpenMP runtime that torch has loaded, if there is one with
        GCC's entry points.
        """
    def sample(self, logits: Tensor, table: SamplingTable, ids: Tensor, /) -> None:
        """int64 ids (rows,): what each row of float32 logits (rows, vocab) samples, or -1 where it
        has no finite largest. The logits change during the call and change back. Raises ValueError
        for values of the table outside their ranges.
        """
    def sum(self, words: Tensor, /) -> int:
        """The sum of int64 words modulo 2**64, each read once."""
    def linear(
        self,
        x: Tensor,
        matrix: Matrix,
        y: Tensor,
        residual: Tensor | None = None,
        rounds: bool = False,
        /,
    ) -> None:
        """y (..., rows), float32 or of x's type: x (..., cols) times the matrix, plus its bias and
        residual (..., rows), both of y's type. If `rounds`, x of more than 16 tokens is rounded to
        int8; the matrix is in int8, in groups of 128.
        """
    def linears(
        self, x: Tensor, matrices: list[Matrix], ys: list[Tensor], rounds: bool = False, /
    ) -> None:
        """`linear` of one x by matrices that are all of one type, and all transposed or none."""
    def pack_mxfp4(self, weight: Tensor, blocks: Tensor, scales: Tensor, sums: Tensor) -> None:
        """uint8 blocks (rows, cols/32, 16) and scales (rows, cols/32) of a weight (rows, cols) with
        contiguous rows; float64 sums (rows, 2) of the squares of what rounding changes, and of
        the weight's. Raises ValueError for NaN or infinity.
        """
    def unpack_mxfp4(self, blocks: Tensor, scales: Tensor, y: Tensor) -> None:
        """y (rows, cols): the values of blocks and scales."""
    def grouped(
        self, x: Tensor, counts: Tensor, stack: Stack, y: Tensor, turned: bool = False
    ) -> None:
        """y (tokens, rows): the first counts[0] rows of x (tokens, cols) times the first matrix of
        the stack, and so on, plus biases; int64 counts (experts,). If `turned`, x (tokens, rows)
        times the transposed matrices, y (tokens, cols). MXFP4 and bfloat16 take x of either type.
        """
    def gate_pairs(self, x: Tensor, y: Tensor, clamped: bool, limit: float, alpha: float) -> None:
        """y (tokens, units): SwiGLU of alternating gates and ups x (tokens, 2 * units)."""
    def gate_gradient(
        self, x: Tensor, gradient: Tensor, y: Tensor, clamped: bool, limit: float, alpha: float
    ) -> None:
        """y (tokens, 2 * units): the gradient of x by that of `gate_pairs`' result."""
    def quantize_int8(self, weight: Tensor, codes: Tensor, scales: Tensor, group: int, /) -> None:
        """int8 codes (rows, cols) and float32 scales (rows, ceil(cols / group)) of a weight (rows,
        cols) with contiguous rows. Raises ValueError for NaN or infinity.
        """
    def embed(
        self, ids: Tensor, table: Tensor, y: Tensor, residual: Tensor | None = None, /
    ) -> None:
        """y (..., hidden): rows of table (count, hidden), which are contiguous and of a type of
        their own, by int64 ids (...), plus residual (..., hidden).
        """
    def rms_norm(
        self, x: Tensor, weight: Tensor, y: Tensor, eps: float, round_before_weight: bool, /
    ) -> None:
        """y (..., size): x over its root mean square, times weight (size,)."""
    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, eps: float, /) -> None:
        """y (..., size): x with mean 0 and variance 1, times weight (size,), plus bias (size,)."""
    def rope_table(
        self,
        positions: Tensor,
        frequencies: Tensor,
        factor: float,
        cosines: Tensor,
        sines: Tensor,
        /,
    ) -> None:
        """Float32 cosines and sines (..., half) of int64 positions (...) times float32 frequencies
        (half,), both times `factor`.
        """
    def rotate(self, x: Tensor, cosines: Tensor, sines: Tensor, y: Tensor, /) -> None:
        """y (tokens, heads, head_dim): the pairs (i, i + head_dim/2) of x rotated by float32
        cosines and sines (tokens, head_dim/2).
        """
    def gelu(self, x: Tensor, y: Tensor, /) -> None: ...
    def swiglu(self, gate: Tensor, up: Tensor, y: Tensor, /) -> None: ...
    def clamped_swiglu(
        self, gate: Tensor, up: Tensor, y: Tensor, limit: float, alpha: float, /
    ) -> None: ...
    def gelu_gradient(self, x: Tensor, gradient: Tensor, y: Tensor, /) -> None:
        """y: the gradient of x by that of gelu's result."""
    def gated_gradient(
        self,
        gate: Tensor,
        up: Tensor,
        gradient: Tensor,
        d_gate: Tensor,
        d_up: Tensor,
        clamped: bool,
        limit: float,
        alpha: float,
        /,
    ) -> None:
        """The gradients of gate and up by that of swiglu's, or of clamped_swiglu's result."""
    def norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        eps: float,
        round_before_weight: bool,
    ) -> None:
        """y (..., size): the layer norm of x, or its RMS norm without a bias; float32 weight and
        bias (size,). y has its own type if x is float32.
        """
    def norm_gradient(
        self,
        x: Tensor,
        weight: Tensor,
        gradient: Tensor,
        y: Tensor,
        d_weight: Tensor,
        d_bias: Tensor | None,
        eps: float,
    ) -> None:
        """y, of x's type: the gradient of x by that of `norm`'s result; float32 d_weight (size,),
        and d_bias of a layer norm.
        """
    def softmax_loss(
        self,
        logits: Tensor,
        targets: Tensor,
        losses: Tensor,
        scale: float,
        z_loss: float,
        slopes: bool,
        /,
    ) -> None:
        """float32 losses (rows, 2): of each row of logits (rows, vocab) the cross-entropy of its
        int64 target (rows,) and the squared log-sum-exp. With `slopes` the logits become scale
        times the gradient of the first plus z_loss times the second. Raises IndexError for a target
        outside the vocabulary.
        """
    def weight_gradient(
        self,
        gradient: Tensor,
        x: Tensor,
        counts: Tensor,
        y: Tensor,
        bias: Tensor | None,
        add: bool,
    ) -> None:
        """float32 y (experts, rows, cols): the gradients of the matrices of `grouped`, of its
        bfloat16 x (tokens, cols) and the gradient (tokens, rows) of its result; with float32 bias
        (experts, rows) those of the biases. If `add`, they are added to y and bias.
        """
    def route(
        self,
        logits: Tensor,
        ids: Tensor,
        weights: Tensor,
        softmax_first: bool,
        renormalize: bool,
        /,
    ) -> None:
        """Of each token of logits (tokens, experts) the largest: their places in int64 ids (tokens,
        chosen) and their softmax in float32 weights (tokens, chosen).
        """
    def moe(
        self,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        experts: Experts,
        y: Tensor,
        residual: Tensor | None = None,
        rounds: bool = False,
        /,
    ) -> None:
        """y (tokens, hidden), float32 or of x's type: the sum of each token's chosen experts by
        float32 weights (tokens, chosen), int64 ids alike, plus residual (tokens, hidden). If
        `rounds`, inputs of both products of more than 16 tokens are rounded to int8; the experts
        are in MXFP4.
        """
    def paged_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        y: Tensor,
        pages: Pages,
        tables: Tables,
        window: int = 0,
        sinks: Tensor | None = None,
        cosines: Tensor | None = None,
        sines: Tensor | None = None,
        /,
    ) -> None:
        """Append k and v (tokens, kv_heads, head_dim) to their pages, then attend with q (tokens,
        heads, head_dim) over all that its sequence holds, or over the window if that is not 0.

        sinks: (heads,), bfloat16 or float32. Float32 cosines and sines (tokens, head_dim/2) rotate
        q and k first. Pages are of q's type or int8.
        """
