import { getWebhookSecret, rotateWebhookSecret } from "../../../protocol/api/account.ts"
import { timestampText } from "../../../protocol/api/common.ts"
import * as secrets from "../../webhooks/secrets.ts"
import { mount, type HttpApp } from "../app.ts"

/** What the calls of an account's jobs are signed with (rulings, Webhook secret). */
export function mountWebhookSecret(app: Pick<HttpApp, "add">, parts: secrets.SecretParts): void {
  mount(app, getWebhookSecret, async (request) => body(await secrets.getWebhookSecret(parts, request.account())))

  mount(app, rotateWebhookSecret, async (request) => {
    // Whoever may repeat the request may read the secret as well.
    const also = request.idempotency.remember((made: secrets.ShownSecret) => ({ status: 200, body: body(made) }))
    return body(await secrets.rotateWebhookSecret(parts, request.account(), also))
  })
}

function body({ secret, previousUntil }: secrets.ShownSecret) {
  return { secret, ...(previousUntil !== null && { previous_valid_until: timestampText(previousUntil) }) }
}
