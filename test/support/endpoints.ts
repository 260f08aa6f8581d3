import { accessEndpoints } from "../../protocol/api/access.ts"
import { accountEndpoints } from "../../protocol/api/account.ts"
import { adminEndpoints } from "../../protocol/api/admin.ts"
import { artifactEndpoints } from "../../protocol/api/artifacts.ts"
import { batchEndpoints } from "../../protocol/api/batch.ts"
import { documentEndpoints } from "../../protocol/api/documents.ts"
import type { Endpoint } from "../../protocol/api/endpoint.ts"
import { feedbackEndpoints } from "../../protocol/api/feedback.ts"
import { jobEndpoints } from "../../protocol/api/jobs-endpoints.ts"
import { nodeEndpoints } from "../../protocol/api/nodes.ts"
import { opsEndpoints } from "../../protocol/api/ops.ts"
import { presetEndpoints } from "../../protocol/api/presets.ts"
import { projectKvEndpoints } from "../../protocol/api/project-kv.ts"
import { projectEndpoints } from "../../protocol/api/projects.ts"

/** All that the coordinator serves over HTTP. */
export const ENDPOINTS: readonly Endpoint[] = [
  ...opsEndpoints,
  ...accountEndpoints,
  ...adminEndpoints,
  ...artifactEndpoints,
  ...documentEndpoints,
  ...projectEndpoints,
  ...projectKvEndpoints,
  ...jobEndpoints,
  ...batchEndpoints,
  ...presetEndpoints,
  ...feedbackEndpoints,
  ...accessEndpoints,
  ...nodeEndpoints,
]
