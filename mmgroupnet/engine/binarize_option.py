"""``--binarize`` and tools/binarize.py: make any config binary from the command line."""

from mmengine.config import Config

from mmgroupnet.converters.policy import parse_policy
from mmgroupnet.engine.configs import find_config, read_config_file
from mmgroupnet.errors import UserError
from mmgroupnet.model_configs import binarized_model, is_binarized_config, is_packed_config, type_name

STATISTICS_HOOK = 'mmgroupnet.BinaryStatisticsHook'


def load_policy(path: str) -> list[dict]:
    """Reads a policy.

    Args:
        path: A config file that defines ``policy = [...]``, or one of ours as
            ``mmgroupnet::_base_/policies/groupnet_k4.py``.

    Raises:
        UserError: If there is no such file, it defines no policy, or a rule is malformed.
    """
    content = read_config_file(find_config(path, 'policy'))
    if 'policy' not in content:
        raise UserError(f'policy {path} does not define policy = [...]')
    policy = content.to_dict()['policy']
    try:
        parse_policy(policy)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    return policy


def binarize_config(cfg: Config, policy: list[dict]) -> None:
    """Makes the model of a config binary, and adds the hook that logs whether it is alive.

    Args:
        cfg: The config, changed in place.
        policy: The rules.

    Raises:
        UserError: If the model is binarized already, or packed.
    """
    if is_binarized_config(cfg) or is_packed_config(cfg):
        raise UserError(f"the config's model is dict(type={cfg.model.type!r}, ...) already, give the one inside it")
    cfg.model = binarized_model(cfg.model, policy)
    hooks = list(cfg.get('custom_hooks') or [])
    if type_name(dict(type=STATISTICS_HOOK)) not in map(type_name, hooks):
        cfg.custom_hooks = [*hooks, dict(type=STATISTICS_HOOK)]
