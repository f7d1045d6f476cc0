"""The sections of a recipe: each key with its type, its bounds, its default and what it means."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

T = TypeVar("T")

MOST = 2**31 - 1
"""The largest number of anything: libraries count in 32 bits here and there."""
Natural = Annotated[int, Field(ge=0, le=MOST)]
Count = Annotated[int, Field(ge=1, le=MOST)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Tuple = Annotated[
    tuple[T, ...],
    Field(min_length=1),
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]


class Section(BaseModel):
    """What all sections share: frozen, strict, no unknown keys, finite numbers."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class DataConfig(Section):
    """Which interactions, and how each user's are divided."""

    source: Text = "ml-100k"
    """A data set's name, or the path of a folder or file with one."""
    split: Literal["leave-one-out", "last-5", "global-time", "files"] = "leave-one-out"
    """How test and validation targets are chosen; "files": as the data set's own files say."""
    k_core: Natural = 0
    """Keep only users and items with at least this many interactions; 0 keeps all."""
    max_users: Natural = 0
    """Use this many users, drawn by the seed; 0 uses all."""


class ClientsConfig(Section):
    """How users are divided over clients."""

    partition: Literal["kmeans", "column", "dirichlet", "user", "random"] = "kmeans"
    """By taste, by a column of the users, by skewed groups, one user each, or at random."""
    count: Count = 5
    """Number of clients; with "column" and "user" the data decide and this is not used."""
    column: str = ""
    """The column of the users that names the client, for the partition "column"."""
    concentration: Positive = 1.0
    """Of the Dirichlet distribution: the smaller, the more the clients differ."""
    groups: Count = 20
    """Groups of like users that the partition "dirichlet" spreads over clients."""
    per_round: Natural = 0
    """Clients drawn each round; 0 takes all."""
    minimum: Count = 1
    """A round with fewer clients that completed it ends the run."""


class ModelConfig(Section):
    """The recommender, its base models, and where it is cut."""

    recommender: Literal["hllm", "bigrec", "recformer"] = "hllm"
    """One vector per item; a language model that writes titles; an encoder of items' texts."""
    base: Text = "minilm"
    """Base model: a known name, or the path of a folder with one. "smollm2" for bigrec."""
    item_encoder: Text = "minilm"
    """Model that turns an item's text into a vector."""
    k_in: Natural = 1
    """First blocks that stay with the client (head)."""
    k_out: Natural = 1
    """Last blocks that stay with the client (tail)."""
    history: Count = 50
    """Most recent interactions of a user that the model reads. 10 for bigrec."""
    item_residual: Literal["shared", "local", "none"] = "shared"
    """Learned part of each item's vector: exchanged, kept by each client, or left out."""
    scale_init: Positive = 10.0
    """What the learned factor of the cosine scores starts at."""
    dropout: Probability = 0.1
    """Probability with which hidden values are dropped in training."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where stages compute: "auto" takes an accelerator where torch sees one. On a CPU the same
    recipe gives the same result to the last bit, on the same machine."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the frozen base; adapters and what crosses stay float32."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Linear layers of the frozen blocks in 8 or 4 bits; needs an accelerator and bitsandbytes."""


class BigrecConfig(Section):
    """What the recommender "bigrec" reads, learns and writes."""

    thing: str = ""
    """What an item is called in the prompt, such as "movie"; empty: by the data set."""
    verb: str = ""
    """What users have done with it, such as "watched"; empty: by the data set."""
    title_tokens: Count = 24
    """Longer titles are cut to this many tokens."""
    max_tokens: Count = 512
    """Most tokens of a prompt with its response; the oldest titles are left out to fit."""
    loss_on: Literal["response", "prompt+response"] = "response"
    """Which tokens are learned; the reference code learns those of the prompt as well."""
    decode: Literal["ground", "trie", "retrieve"] = "trie"
    """Write freely and take the nearest titles; write titles of the catalogue only; or write
    nothing and take the titles nearest to the prompt."""
    beams: Count = 4
    """Titles that are written side by side."""
    prompts: Count = 8
    """Prompts that are answered at a time."""
    popularity: Tuple[NotNegative] = (0.0,)
    """Strengths of the popularity reweighting among which the validation score chooses."""


class RecformerConfig(Section):
    """How the recommender "recformer" reads items and compares them."""

    item_tokens: Count = 32
    """An item's longer texts are cut to this many tokens."""
    max_tokens: Count = 512
    """Most tokens of a history; the oldest whole items are left out to fit."""
    temperature: Positive = 0.05
    """What cosines are divided by."""
    fixed_after: Natural = 0
    """Rounds after which item vectors stay as they are (the second stage); 0 never."""


class LoraConfig(Section):
    """The low-rank adapters, the trained part of every stage."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rank of each adapter."""
    alpha: Count = 32
    """The adapter's product is multiplied by alpha / rank."""
    dropout: Probability = 0.05
    """Probability with which an adapter's inputs are dropped in training."""
    targets: Tuple[Text] = ("query-value",)
    """What carries adapters: "query-value", "attention", "mlp", or names of modules."""
    freeze_a: bool = False
    """Train and exchange B alone: half the bytes, and averages of products become exact."""
    alternate: bool = False
    """Train B in even rounds and A in odd ones: averages of products become exact (RoLoRA)."""


class SplitConfig(Section):
    """What crosses between client and server."""

    codec: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    """How the values of activations and gradients are written."""
    max_frame_mib: Count = 256
    """Largest frame that is accepted, in MiB."""
    max_cache_mib: Count = 2048
    """Most that the server remembers of the texts one client is writing, in MiB."""


class PrivacyConfig(Section):
    """What clients do so that less can be read from what they send."""

    noise: NotNegative = 0.0
    """Noise on activations and gradients at the cuts: its length, over that of a typical activation
    (or over `bound`). 0 sends them as they are."""
    bound: NotNegative = 0.0
    """With noise, longer activations are scaled down to this length; 0 takes the typical one of
    made-up histories, which anybody can work out."""
    private_head: bool = False
    """Keep at home what is trained before the first cut: the head's adapter, and what makes items
    or tokens into its inputs."""
    secret_start: NotNegative = 0.0
    """Start a private head by so much, relative to its weights, away from the public one, at values
    that clients agree on and no server knows."""
    shuffle: bool = False
    """Send positions in random order, where the base attends to all of them alike ("recformer")."""
    user_noise: NotNegative = 0.0
    """User-level differential privacy of what is exchanged: noise on the sum of users' gradients,
    its standard deviation over `user_clip`. The trunk's adapter then rests. 0 for none."""
    user_clip: Positive = 1.0
    """Longest gradient of one user, where there is such noise."""
    epsilon: NotNegative = 0.0
    """Most that a client may spend of its users' privacy; then it learns no more. 0 sets no limit,
    and what was spent is told."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """δ of differential privacy, for all that is told of it."""
    exchange_trunk: bool = True
    """Whether the trunk's adapters are mixed; else each client's stays as its trunk trains it."""


class TrainConfig(Section):
    """Local training."""

    rounds: Natural = 4
    """Federated rounds; 0 scores the base as it comes."""
    local_epochs: Count = 2
    """Passes over a client's users in each round."""
    batch_size: Count = 16
    """Users (or prompts) in each optimiser step."""
    micro_batches: Count = 1
    """Parts into which a batch is cut to save memory; the result is the same."""
    in_flight: Count = 1
    """Parts that may be on their way at the same time, so that client and server both work; each
    takes memory until its gradient is back."""
    learning_rate: Positive = 1e-3
    """AdamW's step size."""
    weight_decay: NotNegative = 0.01
    """AdamW's weight decay."""
    clip: NotNegative = 1.0
    """Largest gradient norm over all stages; 0 never clips."""
    patience: Natural = 0
    """Rounds without a better validation score before a client stops; 0 never stops."""
    windows: Count = 1
    """Training windows drawn from each user in each epoch."""
    samples: Natural = 0
    """Few-shot: examples to learn from, drawn once, evenly by all clients; 0 takes all."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads; 0 leaves it to torch."""


PROXIMAL = ("fedprox", "ditto", "fedamp")
"""Strategies whose training is pulled towards a model."""


class BalanceConfig(Section):
    """How clients learn from each other (METHOD, section 1: M1 to M4)."""

    strategy: Literal["fellrec", "fedavg", "fedprox", "ditto", "fedamp", "local"] = "fellrec"
    """Personalised mixing, one average for all (as it is, with a pull towards it in training, or
    with a personal model beside it), attentive message passing, or no exchange."""
    weighting: Literal["uniform", "examples"] = "uniform"
    """Whether clients with more training examples weigh more: in M3 ("fellrec"), in the average
    ("fedavg", "fedprox", "ditto")."""
    alpha: NotNegative = 0.7
    """M2: how fast clients open to others; 0 never."""
    beta: Positive = 1.0
    """M2: how many rounds the heating is stretched over."""
    heating: Literal["paper", "reference", "none"] = "paper"
    """M2: the exponent t / beta, the reference code's t + 1 / beta, or no heating: attention alone
    decides."""
    tau: NotNegative = 0.0
    """M2: temperature of the softmax over losses; 0 takes the default of the kind of heating."""
    space: Literal["factors", "update", "change", "none"] = "factors"
    """M1: what clients are compared by; "none": all are alike, heating alone decides."""
    temperature: NotNegative = 0.0
    """M1: sharpens attention, the more the lower, beside what is most alike; 0 leaves it as
    published. For "fedamp" 0 stands for 0.1."""
    merge: Literal["factors", "product"] = "factors"
    """M4: what is averaged, the factors A and B or their product."""
    dense: Literal["mixture", "average"] = "mixture"
    """Whether other tensors than the adapters, such as items' vectors, are mixed as these are, or
    averaged over all clients."""
    proximal: NotNegative = 0.01
    """Strength of the pull towards the common model ("fedprox", "ditto") or the own mixture
    ("fedamp") in training."""
    self_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """What a client keeps of itself with "fedamp"."""


class RobustConfig(Section):
    """What of a client's update the others are given, where clients may attack or break."""

    clip: NotNegative = 3.0
    """Largest change of a client in a round, in medians of all clients' changes; a larger one is
    scaled down to it. 0 never."""
    refuse: NotNegative = 100.0
    """From how many medians on a client is left out of the round. 0 never; one whose values are no
    numbers always is."""
    rule: Literal["none", "median", "trimmed-mean", "krum"] = "none"
    """What is given to nobody else: nothing; all but each value's median; each value's extremes;
    clients that are far from all others."""
    malicious: Natural = 1
    """Clients that may be malicious in one round: as many extremes on either side are left out
    ("trimmed-mean"), or as many clients ("krum"), less those that were refused."""

    def fewest(self, malicious: int | None = None) -> int:
        """Return how many clients the rule needs in a round; malicious: of them, None for all."""
        odd = self.malicious if malicious is None else malicious
        least = {"none": 1, "median": 3, "trimmed-mean": 2 * odd + 1}
        return least.get(self.rule, 2 * odd + 3 if odd else 1)


class EvaluationConfig(Section):
    """What is measured, and what decides which round is best."""

    ks: Tuple[Annotated[int, Field(ge=1, le=1_000_000)]] = (5, 10, 20)
    """Lengths of the lists that are scored."""
    metric: str = Field(
        default="ndcg@10",
        pattern=r"^(ndcg|recall)@[1-9][0-9]{0,6}$",
        examples=["ndcg@10", "recall@5"],
    )
    """The validation score that decides on the best round and on stopping."""
    batch_size: Count = 128
    """Users scored at a time."""
    valid_users: Natural = 0
    """Users of the validation score, drawn once and spread over clients; 0 takes all."""
    test_users: Natural = 0
    """Users of the test score, drawn once and spread over clients; 0 takes all."""
    before_mixing: bool = True
    """Also score each client's model before it is mixed."""
    keep_rounds: Count = 2
    """Finished rounds whose complete state is kept."""
