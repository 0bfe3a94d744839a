import json

from common.config import CommonConfig
from common.run.record import config_record


def test_config_record_can_tell_two_machines_apart():
    record = json.loads(json.dumps(config_record(CommonConfig(), "train_x")))
    assert record["flags"]["model"] == "tiny" and record["versions"]["torch"] and record["hardware"]["cpus"] and "commit" in record
