"""The classes and functions of Keras 3 that a stored model may name.

Chosen by reading what each does with its configuration: none runs code of the file, reads a path, imports a module or
takes memory before its weights are known. Left out on purpose, among others: `Lambda`, `TFSMLayer`, `JaxLayer`,
`FlaxLayer`, `TorchModuleWrapper` (code), `StringLookup`, `IntegerLookup`, `TextVectorization` (files), the quantized
dtype policies, and what an image classifier does not need.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LAYERS = _names(
    """
    Activation ActivityRegularization Add AlphaDropout Average AveragePooling1D AveragePooling2D
    AveragePooling3D BatchNormalization CenterCrop Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose
    Conv3D Conv3DTranspose Cropping1D Cropping2D Cropping3D Dense DepthwiseConv1D DepthwiseConv2D Dot Dropout
    ELU EinsumDense Embedding Flatten GaussianDropout GaussianNoise GlobalAveragePooling1D
    GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GroupNormalization Identity InputLayer LayerNormalization LeakyReLU MaxPooling1D MaxPooling2D MaxPooling3D
    Maximum Minimum MultiHeadAttention Multiply Normalization PReLU Permute RMSNormalization RandomBrightness
    RandomContrast RandomCrop RandomFlip RandomRotation RandomTranslation RandomZoom ReLU RepeatVector Rescaling
    Reshape Resizing SeparableConv1D SeparableConv2D Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D
    Subtract TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D
    ZeroPadding2D ZeroPadding3D
    """
)

INITIALIZERS = _names(
    """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal LecunUniform
    Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros
    """
)

# Only `compile_config` names optimizers, losses and metrics. It is never built here, but another reader of the file
# would build it.
OPTIMIZERS = _names("Adadelta Adagrad Adam AdamW Adamax Ftrl Lamb Lion Nadam RMSprop SGD")
SCHEDULES = _names(
    """
    CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay PiecewiseConstantDecay PolynomialDecay
    """
)
LOSSES = _names(
    """
    BinaryCrossentropy BinaryFocalCrossentropy CategoricalCrossentropy CategoricalFocalCrossentropy
    CategoricalHinge CosineSimilarity Hinge Huber KLDivergence LogCosh MeanAbsoluteError MeanSquaredError
    Poisson SparseCategoricalCrossentropy SquaredHinge
    """
)
METRICS = _names(
    """
    AUC Accuracy BinaryAccuracy BinaryCrossentropy CategoricalAccuracy CategoricalCrossentropy F1Score
    FalseNegatives FalsePositives KLDivergence Mean MeanAbsoluteError MeanMetricWrapper MeanSquaredError
    Precision Recall SparseCategoricalAccuracy SparseCategoricalCrossentropy SparseTopKCategoricalAccuracy
    TopKCategoricalAccuracy TrueNegatives TruePositives
    """
)

# Arithmetic written directly on the tensors of a functional model, such as `x / 2`.
ARRAY_OPERATIONS = _names(
    """
    Absolute Add Clip Concatenate Divide Exp ExpandDims GetItem Log Matmul Max Maximum Mean Min Minimum Multiply
    Negative Power Reshape Sqrt Square Squeeze Stack Std Subtract Sum Transpose TrueDivide Var
    """
)
NETWORK_OPERATIONS = _names(
    """
    Elu Gelu HardSigmoid HardSilu LeakyRelu LogSoftmax Relu Relu6 Sigmoid Silu Softmax Softplus
    """
)

CLASSES: dict[str, frozenset[str]] = {
    "keras": frozenset({"Sequential", "Model", "DTypePolicy"}),
    "keras.models": frozenset({"Sequential", "Model"}),
    "keras.src.models.functional": frozenset({"Functional"}),
    "keras.layers": LAYERS,
    # ConvNeXt of keras.applications.
    "keras.src.applications.convnext": frozenset({"LayerScale", "StochasticDepth"}),
    "keras.initializers": INITIALIZERS,
    "keras.regularizers": frozenset({"L1", "L1L2", "L2", "OrthogonalRegularizer"}),
    "keras.constraints": frozenset({"MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"}),
    "keras.dtype_policies": frozenset({"DTypePolicy"}),
    "keras.optimizers": OPTIMIZERS,
    "keras.optimizers.schedules": SCHEDULES,
    "keras.losses": LOSSES,
    "keras.metrics": METRICS,
    "keras.src.ops.numpy": ARRAY_OPERATIONS,
    "keras.src.ops.nn": NETWORK_OPERATIONS,
    "keras.src.ops.core": frozenset({"Cast"}),
}
ALL_CLASSES = frozenset().union(*CLASSES.values())

FUNCTION_MODULES = frozenset({"builtins", "keras.activations", "keras.losses", "keras.metrics"})
FUNCTIONS = _names(
    """
    binary_accuracy binary_crossentropy categorical_accuracy categorical_crossentropy categorical_hinge celu elu
    exponential gelu hard_sigmoid hard_silu hard_swish hard_tanh kl_divergence leaky_relu linear log_sigmoid
    log_softmax mean_absolute_error mean_squared_error mish relu relu6 selu sigmoid silu softmax softplus
    softsign sparse_categorical_accuracy sparse_categorical_crossentropy sparse_top_k_categorical_accuracy
    squareplus swish tanh top_k_categorical_accuracy
    """
)

PLAIN_VALUES = frozenset({"__keras_tensor__", "__slice__", "__ellipsis__"})
LEGACY_VALUES = frozenset({"__tuple__", "TensorShape"})
LEGACY_LOOKUPS = _names(
    """
    Input add average concatenate deserialize dot maximum minimum multiply serialize subtract
    """
)
DTYPES = _names(
    """
    bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64 mixed_float16 mixed_bfloat16
    """
)
