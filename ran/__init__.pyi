from .evaluation.evaluation import (
    evaluate as evaluate,
)
from .evaluation.prediction import (
    predict as predict,
)
from .models.attention import (
    AttentionFeatures as AttentionFeatures,
)
from .models.attention import (
    AttentionModule as AttentionModule,
)
from .models.attention import (
    SoftMaskBranch as SoftMaskBranch,
)
from .models.cbam_registry import (
    cbam_resnet18 as cbam_resnet18,
)
from .models.cbam_registry import (
    cbam_resnet34 as cbam_resnet34,
)
from .models.cbam_registry import (
    cbam_resnet50 as cbam_resnet50,
)
from .models.cbam_registry import (
    cbam_resnet101 as cbam_resnet101,
)
from .models.cbam_registry import (
    cbam_resnext50_32x4d as cbam_resnext50_32x4d,
)
from .models.cbam_registry import (
    cbam_resnext101_32x4d as cbam_resnext101_32x4d,
)
from .models.cbam_registry import (
    cbam_wide_resnet18_1_5 as cbam_wide_resnet18_1_5,
)
from .models.cbam_registry import (
    cbam_wide_resnet18_2 as cbam_wide_resnet18_2,
)
from .models.cbam_resnet import (
    CbamGates as CbamGates,
)
from .models.cbam_resnet import (
    CbamResNet as CbamResNet,
)
from .models.profile import (
    count_multiply_adds as count_multiply_adds,
)
from .models.profile import (
    count_parameters as count_parameters,
)
from .models.registry import (
    attention56 as attention56,
)
from .models.registry import (
    attention56_cifar as attention56_cifar,
)
from .models.registry import (
    attention56_cifar_pool as attention56_cifar_pool,
)
from .models.registry import (
    attention56_cifar_wide as attention56_cifar_wide,
)
from .models.registry import (
    attention92 as attention92,
)
from .models.registry import (
    attention92_448 as attention92_448,
)
from .models.registry import (
    attention92_cifar as attention92_cifar,
)
from .models.registry import (
    attention92_cifar_pool as attention92_cifar_pool,
)
from .models.registry import (
    attention92_cifar_wide as attention92_cifar_wide,
)
from .models.registry import (
    attention128 as attention128,
)
from .models.registry import (
    attention128_cifar as attention128_cifar,
)
from .models.registry import (
    attention164 as attention164,
)
from .models.registry import (
    attention164_cifar as attention164_cifar,
)
from .models.registry import (
    attention200 as attention200,
)
from .models.registry import (
    attention236 as attention236,
)
from .models.registry import (
    attention236_cifar as attention236_cifar,
)
from .models.registry import (
    attention452 as attention452,
)
from .models.registry import (
    attention452_cifar as attention452_cifar,
)
from .models.registry import (
    attentionnext56 as attentionnext56,
)
from .models.registry import (
    attentionnext92 as attentionnext92,
)
from .models.registry import (
    create_model as create_model,
)
from .models.registry import (
    list_models as list_models,
)
from .models.residual_attention import (
    ResidualAttentionNetwork as ResidualAttentionNetwork,
)
from .models.spec import (
    NetworkSpec as NetworkSpec,
)
from .pictures.masks import (
    plot_masks as plot_masks,
)
from .serving.deploy import (
    Deployed as Deployed,
)
from .serving.deploy import (
    deploy as deploy,
)
from .serving.export import (
    export as export,
)
from .training.api import (
    train as train,
)
from .weights.loading import (
    load_checkpoint as load_checkpoint,
)
from .weights.pretrained import (
    from_pretrained as from_pretrained,
)
from .weights.pretrained import (
    save_pretrained as save_pretrained,
)
from .weights.report import (
    LoadReport as LoadReport,
)

__version__: str
